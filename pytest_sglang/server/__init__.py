"""One SGLang: find, start, stop, prove who answers, wait until ready, read its log as phases."""
