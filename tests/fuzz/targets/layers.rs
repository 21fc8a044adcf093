//! Layers of images of strangers: archives, packed or not, unpacked on top of another layer.

#![no_main]

use std::os::unix::fs::symlink;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use vmpod_fuzz::{Feed, Scratch};
use vmpod_shim::images::UnpackLimits;
use vmpod_shim::images::fuzzed::{decompress, unpack};

const BLOCK: usize = 512;

/// Makes the checksum of each header right (POSIX ustar, pax(1)): it would keep the fuzzer out.
fn with_checksums(bytes: &[u8]) -> Vec<u8> {
    let mut archive = bytes.to_vec();
    let mut at = 0;
    while let Some(header) = archive.get_mut(at..at + BLOCK) {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let size = std::str::from_utf8(&header[124..135])
            .ok()
            .and_then(|text| usize::from_str_radix(text.trim_matches(['\0', ' ']), 8).ok());
        at += BLOCK + size.unwrap_or(0).min(1 << 20).next_multiple_of(BLOCK);
    }
    archive
}

/// Headers from short descriptions: name, kind, target of a link, content.
fn described(feed: &mut Feed<'_>) -> Vec<u8> {
    let mut archive = Vec::new();
    while !feed.is_empty() {
        let mut header = [0; BLOCK];
        let lengths = feed.u8();
        let name = feed.bytes(usize::from(lengths & 15));
        header[..name.len()].copy_from_slice(name);
        let link = feed.bytes(usize::from(lengths >> 4));
        header[157..157 + link.len()].copy_from_slice(link);
        header[156] = b"0123456L KxgS7"[usize::from(feed.u8() % 14)];
        header[100..107].copy_from_slice(format!("{:07o}", feed.u16() & 0o7777).as_bytes());
        let content = feed.u8();
        let content = feed.bytes(usize::from(content));
        header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        header[257..265].copy_from_slice(b"ustar\x0000");
        archive.extend(header);
        archive.extend(content);
        archive.resize(archive.len().next_multiple_of(BLOCK), 0);
    }
    archive
}

fuzz_target!(|data: &[u8]| {
    static SCRATCH: OnceLock<Scratch> = OnceLock::new();
    let scratch = SCRATCH.get_or_init(Scratch::enter);
    let outside = scratch.path().join("outside");
    std::fs::write(&outside, "untouched").expect("write outside");
    let lower = scratch.fresh("lower");
    std::fs::create_dir_all(lower.join("d")).expect("make a directory");
    std::fs::write(lower.join("d/f"), "below").expect("write a file");
    symlink("/mnt", lower.join("a")).expect("make a link");
    symlink("../..", lower.join("d/u")).expect("make a link");
    let layer = scratch.fresh("layer");

    let mut feed = Feed::new(data);
    let archive = match feed.u8() % 4 {
        0 => feed.rest().to_vec(),
        1 => with_checksums(feed.rest()),
        _ => with_checksums(&described(&mut feed)),
    };
    let limits = UnpackLimits {
        bytes: 1 << 20,
        entries: 64,
    };
    if let Ok(reader) = decompress(archive.as_slice()) {
        let _ = unpack(reader, &layer, &[lower.clone()], &limits);
    }
    let kept = std::fs::read_to_string(&outside).expect("read outside");
    assert_eq!(kept, "untouched", "a layer left its directory");
    let kept = std::fs::read_to_string(lower.join("d/f")).expect("read the layer below");
    assert_eq!(kept, "below", "a layer wrote to the one below");
    let mut names: Vec<_> = std::fs::read_dir(scratch.path())
        .expect("list the directory")
        .map(|entry| entry.expect("entry").file_name())
        .collect();
    names.sort();
    assert_eq!(
        names,
        ["layer", "lower", "outside"],
        "something was made outside"
    );
});
