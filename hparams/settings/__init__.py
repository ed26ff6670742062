"""Groups of settings, and the stages made of them: a stage is all the settings of one script."""
