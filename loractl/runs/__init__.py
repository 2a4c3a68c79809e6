"""What the `run` of every training method shares: from the sections of a job to calls of the back.

The one place beside a plugin's `run.py` where the two halves meet, and only plugins import it.
"""
