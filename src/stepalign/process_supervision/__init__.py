"""First wrong steps on human labels: ProcessBench's traces, locators of the first error, Math-Shepherd's step values."""
