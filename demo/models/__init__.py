"""Models that the page uses. This file imports nothing: the page opens before torch is loaded."""

MAX_GROUP_SIZE = 16  # of a group that the page samples
