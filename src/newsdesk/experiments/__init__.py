"""Many runs to what to choose: sweeps over recipe values."""
