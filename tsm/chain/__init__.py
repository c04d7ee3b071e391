"""What run_all.sh calls: one stage, the chip of an Atlas host."""
