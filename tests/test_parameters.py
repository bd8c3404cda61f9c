"""Parameters under their former names: accepted with a warning, wherever parameters are given."""

import pytest
from pydantic import ValidationError

from apps.deployments import with_current_names
from flows.refresh import RefreshParameters
from tasks.curation.classify import ClassifyParams
from tasks.curation.steps import steps


def test_a_former_name_is_accepted_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert ClassifyParams(similarity=0.7) == ClassifyParams(frame_similarity=0.7)
    assert ["similarity is called frame_similarity" in record.message for record in caplog.records] == [True]
    parameters = RefreshParameters(word_threshold=2.0, copies="keep", preset="fast", with_sound=True, model="m")
    assert (parameters.keyword_threshold, parameters.near_duplicates) == (2.0, "keep")
    assert (parameters.x264_preset, parameters.with_audio, parameters.frame_encoder) == ("fast", True, "m")
    assert "similarity" not in parameters.model_dump(mode="json")


def test_both_names_and_unknown_ones_are_refused() -> None:
    with pytest.raises(ValidationError, match="similarity is the former name of frame_similarity"):
        ClassifyParams(similarity=0.7, frame_similarity=0.7)
    with pytest.raises(ValidationError, match="similarty"):
        RefreshParameters(similarty=0.7)


def test_deployments_are_registered_by_the_new_names() -> None:
    written = {"sources": ["videos"], "similarity": 0.7}  # as prefect.yaml may still have it
    assert with_current_names("refresh", written) == {"sources": ["videos"], "frame_similarity": 0.7}


def test_a_refresh_has_the_parameters_of_all_its_steps() -> None:
    for step in steps():
        for name, field in step.params.model_fields.items():
            assert RefreshParameters.model_fields[name].default == field.default, (step.name, name)
