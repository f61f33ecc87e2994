"""The lab: real guests, front-ends and other people's back-ends against Sluice. See Lab/README.md."""
