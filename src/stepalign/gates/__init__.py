"""Gates: measures of a recipe that tell, before it is paid for, whether a run can work."""
