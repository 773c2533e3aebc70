"""The command line: parses options, calls one function of the pipeline, prints its report."""
