"""Evidence packs: what is on record about a clip or a release, in one signed archive that anybody can check."""
