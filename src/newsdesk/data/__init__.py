"""Files and named data sets to examples."""
