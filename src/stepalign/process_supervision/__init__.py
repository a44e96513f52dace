"""First wrong steps on human labels: ProcessBench's traces, locators, and Math-Shepherd's step values."""
