"""`medgen demo`: real videos that come inside Python packages, from listing and server to a release and a model."""
