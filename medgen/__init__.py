"""The ground of medgen: settings, catalog, ledger, store and media. It knows nothing of medicine."""

__version__ = "0.1.0"
