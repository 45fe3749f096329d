"""Teacher text for rows without it: from an OpenAI-compatible endpoint, or from a model on this machine."""
