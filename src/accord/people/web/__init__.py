"""The pages that people see, and the interface for programs, over one desk."""
