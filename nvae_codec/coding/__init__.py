"""The bits-back coder. It knows neither networks nor files: probabilities come in as integers, a stack of words goes out."""
