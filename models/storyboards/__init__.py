"""What should a video made for a use show and say? Storyboards, by template or by a language model; who is shown."""
