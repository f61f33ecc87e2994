"""The jobs, a module for each topic. lab/catalogue.py lists them."""
