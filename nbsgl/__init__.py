"""nbsgl: SGLang made native to the notebook."""

__version__ = "0.1.0"
