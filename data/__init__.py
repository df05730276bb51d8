"""Problems, chat templates, procedural text, packing, data sets on disk. Free of torch."""
