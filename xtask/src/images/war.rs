//! The web application of the example: a WAR, which is a zip file (APPNOTE.TXT 6.3), written without compression.
//!
//! It has a static page, a JSP page that the server compiles, and a deployment descriptor. The same bytes every time.

use flate2::Crc;

const PAGE: &str = "<!DOCTYPE html>\n<html>\n<head><title>vmpod sample</title></head>\n<body>\n<h1>vmpod sample application</h1>\n\
<p>This page was delivered by an init container and is served by Tomcat, in one microVM.</p>\n\
<p><a href=\"server.jsp\">What the server says of itself</a></p>\n</body>\n</html>\n";

const JSP: &str = "<%@ page contentType=\"text/plain; charset=UTF-8\" session=\"false\" %>\
vmpod sample application on <%= application.getServerInfo() %>, Java <%= System.getProperty(\"java.version\") %>\n";

const DESCRIPTOR: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
<web-app xmlns=\"https://jakarta.ee/xml/ns/jakartaee\" version=\"5.0\" metadata-complete=\"true\">\n\
  <display-name>vmpod sample</display-name>\n\
  <welcome-file-list><welcome-file>index.html</welcome-file></welcome-file-list>\n</web-app>\n";

const MANIFEST: &str = "Manifest-Version: 1.0\r\nCreated-By: vmpod\r\n\r\n";

/// The bytes of `sample.war`.
#[must_use]
pub fn sample() -> Vec<u8> {
    zip(&[
        ("META-INF/MANIFEST.MF", MANIFEST),
        ("WEB-INF/web.xml", DESCRIPTOR),
        ("index.html", PAGE),
        ("server.jsp", JSP),
    ])
}

/// 1 October 2025, 00:00, in MS-DOS form: date and time.
const DATE: u16 = ((2025 - 1980) << 9) | (10 << 5) | 1;

/// A zip file of stored entries.
fn zip(files: &[(&str, &str)]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, content) in files {
        let offset = u32::try_from(out.len()).unwrap_or(u32::MAX);
        let mut crc = Crc::new();
        crc.update(content.as_bytes());
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let length = u16::try_from(name.len()).unwrap_or(u16::MAX);
        // What a local header and a central one have in common: version needed, flags, method, time, date, CRC, sizes.
        let mut shared = Vec::new();
        for field in [20_u16, 0, 0, 0, DATE] {
            shared.extend(field.to_le_bytes());
        }
        for field in [crc.sum(), size, size] {
            shared.extend(field.to_le_bytes());
        }
        for field in [length, 0] {
            shared.extend(field.to_le_bytes());
        }
        out.extend(0x0403_4b50_u32.to_le_bytes());
        out.extend(&shared);
        out.extend(name.as_bytes());
        out.extend(content.as_bytes());
        directory.extend(0x0201_4b50_u32.to_le_bytes());
        // Made by version 2.0 on Unix.
        directory.extend([20, 3]);
        directory.extend(&shared);
        // Comment length, disk, internal attributes; then external attributes (mode 0644) and the offset.
        directory.extend([0; 6]);
        directory.extend((0o100_644_u32 << 16).to_le_bytes());
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let start = u32::try_from(out.len()).unwrap_or(u32::MAX);
    let length = u32::try_from(directory.len()).unwrap_or(u32::MAX);
    let count = u16::try_from(files.len()).unwrap_or(u16::MAX);
    out.extend(&directory);
    out.extend(0x0605_4b50_u32.to_le_bytes());
    for field in [0, 0, count, count] {
        out.extend(field.to_le_bytes());
    }
    out.extend(length.to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend(0_u16.to_le_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u16_at(bytes: &[u8], at: usize) -> usize {
        usize::from(u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()))
    }

    fn u32_at(bytes: &[u8], at: usize) -> usize {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
    }

    #[test]
    fn sample_read_by_its_central_directory_has_its_files() {
        let war = sample();
        let end = war.len() - 22;
        assert_eq!(u32_at(&war, end), 0x0605_4b50);
        let mut at = u32_at(&war, end + 16);
        assert_eq!(at + u32_at(&war, end + 12), end);
        let mut names = Vec::new();
        for _ in 0..u16_at(&war, end + 10) {
            assert_eq!(u32_at(&war, at), 0x0201_4b50);
            let (size, length, local) = (
                u32_at(&war, at + 24),
                u16_at(&war, at + 28),
                u32_at(&war, at + 42),
            );
            let name = std::str::from_utf8(&war[at + 46..at + 46 + length]).unwrap();
            assert_eq!(u32_at(&war, local), 0x0403_4b50);
            let content = &war[local + 30 + length..local + 30 + length + size];
            let mut crc = Crc::new();
            crc.update(content);
            assert_eq!(crc.sum() as usize, u32_at(&war, at + 16), "{name}");
            names.push(name.to_owned());
            at += 46 + length;
        }
        assert_eq!((at, names.len()), (end, 4));
        assert!(names.contains(&"index.html".to_owned()) && PAGE.contains("sample"));
    }
}
