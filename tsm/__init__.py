"""What two or more of the suite's scripts share: plain functions, one module per concern."""

__version__ = "1.0.0"
