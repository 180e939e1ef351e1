"""What `fit` learns: the VAE, the poses of training images, and the search models. The only folder with skorch."""
