"""Data frames: pandas is imported when one is asked for, not before."""

from typing import Any


def pandas() -> Any:
    """Return pandas, or raise ImportError saying what to install."""
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError("A data frame needs pandas, which is not here: pip install pandas.") from error
    return pd
