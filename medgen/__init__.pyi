from medgen.release_reader import Clip as Clip
from medgen.release_reader import LearnedModel as LearnedModel
from medgen.release_reader import Release as Release
from medgen.release_reader import Step as Step
from medgen.release_reader import list_releases as list_releases
from medgen.release_reader import open_release as open_release

__version__: str
