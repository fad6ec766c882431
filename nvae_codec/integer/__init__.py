"""The integer twin of a network: the same topology with ops that compute on integers, and its conversion."""
