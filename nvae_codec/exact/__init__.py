"""The integer twin of a network: the same topology with leaves that compute on integers alone, and the conversion from floats."""
