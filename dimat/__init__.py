"""dimat: models that were trained apart become one, without moving anybody's data and without a centre."""

__version__ = "0.1.0"
