"""Every equation of the library, once: tensors in, tensors out. Imports nothing but torch."""
