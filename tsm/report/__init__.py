"""What a run found: its table, its page, two runs compared, a gap blamed on its stage."""
