"""The audit of labelled texts: likely label errors, copies, conflicts, leakage."""
