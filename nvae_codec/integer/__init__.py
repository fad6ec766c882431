"""The integer twin of a network: the same topology with leaves that compute on integers, and its conversion."""
