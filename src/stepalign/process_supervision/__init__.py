"""Process rewards: ProcessBench's human labels, locators of the first wrong step, Math-Shepherd's step values."""
