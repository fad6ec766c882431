"""The bits-back coder, which knows neither networks nor files: integer probabilities in, a stack of words out."""
