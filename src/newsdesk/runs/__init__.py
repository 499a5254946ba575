"""The typed, versioned files of a run and of an exported model; imports without torch."""
