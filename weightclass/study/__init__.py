"""Many runs: a study is a grid of recipes x overrides x seeds that becomes a table beside published numbers."""
