//! virtio block device (VIRTIO 1.3 section 5.2).
