//! Root file system trees from .deb files: unpacking, the dpkg database and configuration in a sandbox.
