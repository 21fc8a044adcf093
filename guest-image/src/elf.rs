//! The two questions this crate asks an ELF file: has it the PVH entry, and is it static.
//!
//! Source: the ELF-64 object file format, and `xen/elfnote.h` for the note that carries the 32-bit
//! entry of "PVH" direct boot. Reads byte slices with bounds checked everywhere; loads nothing.

use thiserror::Error;

const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;
/// `XEN_ELFNOTE_PHYS32_ENTRY`: physical address of the 32-bit entry.
const NOTE_PHYS32_ENTRY: u32 = 18;
const MACHINE_X86_64: u16 = 62;
const HEADER_LEN: usize = 64;
const PROGRAM_HEADER_LEN: usize = 56;

/// Why a file is no usable ELF program.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ElfError {
    #[error("it is not a 64-bit little-endian ELF file")]
    NotElf,
    #[error("it is for ELF machine {0}, not for x86-64 (62)")]
    OtherMachine(u16),
    #[error("its program headers lie outside the file")]
    Truncated,
}

/// One program header's type and its bytes in the file.
struct Segment<'a> {
    kind: u32,
    bytes: &'a [u8],
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(
        bytes.get(at..at.checked_add(2)?)?.try_into().ok()?,
    ))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(
        bytes.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(
        bytes.get(at..at.checked_add(8)?)?.try_into().ok()?,
    ))
}

fn segments(file: &[u8]) -> Result<Vec<Segment<'_>>, ElfError> {
    // ELFCLASS64, ELFDATA2LSB.
    if file.len() < HEADER_LEN || !file.starts_with(&[0x7f, b'E', b'L', b'F', 2, 1]) {
        return Err(ElfError::NotElf);
    }
    let machine = u16_at(file, 18).ok_or(ElfError::Truncated)?;
    if machine != MACHINE_X86_64 {
        return Err(ElfError::OtherMachine(machine));
    }
    let read = || -> Option<Vec<Segment<'_>>> {
        let table = usize::try_from(u64_at(file, 32)?).ok()?;
        let entry_len = usize::from(u16_at(file, 54)?);
        let count = usize::from(u16_at(file, 56)?);
        if count > 0 && entry_len < PROGRAM_HEADER_LEN {
            return None;
        }
        (0..count)
            .map(|index| {
                let at = table.checked_add(index.checked_mul(entry_len)?)?;
                let kind = u32_at(file, at)?;
                let start = usize::try_from(u64_at(file, at.checked_add(8)?)?).ok()?;
                let len = usize::try_from(u64_at(file, at.checked_add(32)?)?).ok()?;
                Some(Segment {
                    kind,
                    bytes: file.get(start..start.checked_add(len)?)?,
                })
            })
            .collect()
    };
    read().ok_or(ElfError::Truncated)
}

/// Whether the program asks for a dynamic loader.
pub(crate) fn is_dynamic(file: &[u8]) -> Result<bool, ElfError> {
    Ok(segments(file)?
        .iter()
        .any(|segment| segment.kind == PT_INTERP))
}

/// The physical address of the PVH entry, where the file has one.
pub(crate) fn pvh_entry(file: &[u8]) -> Result<Option<u64>, ElfError> {
    Ok(segments(file)?
        .iter()
        .filter(|segment| segment.kind == PT_NOTE)
        .find_map(|segment| pvh_note(segment.bytes)))
}

/// Walks `name size, descriptor size, type, name, descriptor` records, each padded to 4 bytes.
fn pvh_note(mut notes: &[u8]) -> Option<u64> {
    const PAD: usize = 4;
    loop {
        let name_len = usize::try_from(u32_at(notes, 0)?).ok()?;
        let descriptor_len = usize::try_from(u32_at(notes, 4)?).ok()?;
        let kind = u32_at(notes, 8)?;
        let name = notes.get(12..12usize.checked_add(name_len)?)?;
        let descriptor_at = 12usize.checked_add(name_len.checked_next_multiple_of(PAD)?)?;
        let descriptor_end = descriptor_at.checked_add(descriptor_len)?;
        let descriptor = notes.get(descriptor_at..descriptor_end)?;
        if name == b"Xen\0" && kind == NOTE_PHYS32_ENTRY {
            return match descriptor_len {
                8 => u64_at(descriptor, 0),
                _ => u32_at(descriptor, 0).map(u64::from),
            };
        }
        notes = notes.get(descriptor_end.checked_next_multiple_of(PAD)?..)?;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An ELF file with one segment of `kind` that holds `bytes`.
    pub(crate) fn file_with_segment(kind: u32, bytes: &[u8]) -> Vec<u8> {
        let mut file = vec![0u8; HEADER_LEN + PROGRAM_HEADER_LEN];
        file[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
        file[18..20].copy_from_slice(&MACHINE_X86_64.to_le_bytes());
        file[32..40].copy_from_slice(&(HEADER_LEN as u64).to_le_bytes());
        file[54..56].copy_from_slice(&(PROGRAM_HEADER_LEN as u16).to_le_bytes());
        file[56..58].copy_from_slice(&1u16.to_le_bytes());
        let header = &mut file[HEADER_LEN..];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..16].copy_from_slice(&((HEADER_LEN + PROGRAM_HEADER_LEN) as u64).to_le_bytes());
        header[32..40].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        file.extend_from_slice(bytes);
        file
    }

    pub(crate) fn static_program() -> Vec<u8> {
        file_with_segment(1, b"program")
    }

    fn note(name: &[u8], kind: u32, descriptor: &[u8]) -> Vec<u8> {
        let mut note = Vec::new();
        note.extend_from_slice(&(name.len() as u32).to_le_bytes());
        note.extend_from_slice(&(descriptor.len() as u32).to_le_bytes());
        note.extend_from_slice(&kind.to_le_bytes());
        note.extend_from_slice(name);
        note.resize(note.len().next_multiple_of(4), 0);
        note.extend_from_slice(descriptor);
        note.resize(note.len().next_multiple_of(4), 0);
        note
    }

    #[test]
    fn pvh_entry_note_after_another_is_found() {
        let mut notes = note(b"GNU\0", 3, b"build");
        notes.extend(note(
            b"Xen\0",
            NOTE_PHYS32_ENTRY,
            &0x0100_0370u64.to_le_bytes(),
        ));
        assert_eq!(
            pvh_entry(&file_with_segment(PT_NOTE, &notes)),
            Ok(Some(0x0100_0370))
        );
    }

    #[test]
    fn pvh_entry_other_notes_only_is_none() {
        let notes = note(b"GNU\0", NOTE_PHYS32_ENTRY, &[0; 8]);
        assert_eq!(pvh_entry(&file_with_segment(PT_NOTE, &notes)), Ok(None));
    }

    #[test]
    fn pvh_entry_note_longer_than_its_segment_is_none() {
        let mut notes = note(b"Xen\0", NOTE_PHYS32_ENTRY, &[0; 8]);
        notes[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(pvh_entry(&file_with_segment(PT_NOTE, &notes)), Ok(None));
    }

    #[test]
    fn is_dynamic_interpreter_segment_is_told_from_static() {
        assert_eq!(
            is_dynamic(&file_with_segment(PT_INTERP, b"/lib64/ld.so\0")),
            Ok(true)
        );
        assert_eq!(is_dynamic(&static_program()), Ok(false));
    }

    #[test]
    fn segments_hostile_headers_are_refused() {
        assert_eq!(is_dynamic(b"#!/bin/sh\n"), Err(ElfError::NotElf));
        let mut other = static_program();
        other[18] = 183;
        assert_eq!(is_dynamic(&other), Err(ElfError::OtherMachine(183)));
        let mut far = static_program();
        far[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(is_dynamic(&far), Err(ElfError::Truncated));
        let mut long = static_program();
        long[HEADER_LEN + 32..HEADER_LEN + 40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(is_dynamic(&long), Err(ElfError::Truncated));
    }
}
