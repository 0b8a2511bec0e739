"""The version of the library, which a run and a model card record."""

__version__ = "0.1.0"
