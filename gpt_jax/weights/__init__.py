"""Other people's checkpoints <-> our parameter tree."""
