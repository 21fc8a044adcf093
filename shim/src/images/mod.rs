//! Container images: references, pull, import, the content-addressed store, unpacked layers.
