//! Certificates of private registries, where Docker and its relatives keep them: `/etc/docker/certs.d/HOST[:PORT]/*.crt`.
//!
//! They are trusted beside the system's own. Client certificates (`*.cert`, `*.key`) are not read.

use std::io::{self, Read as _};
use std::path::{Component, Path};

use oci_client::client::{Certificate, CertificateEncoding};

use super::fault::PullCause;

/// Where certificates are unless the caller says otherwise.
pub const CERTIFICATES_PATH: &str = "/etc/docker/certs.d";

/// Most bytes of one file; the bundle of all public authorities has about 220,000.
const LIMIT: u64 = 1 << 20;

/// The certificates for `host` (`HOST` or `HOST:PORT`), by file name; none when its folder does not exist.
///
/// # Errors
/// [`PullCause::Certificate`] when the folder or a file cannot be read or is too large.
pub(super) fn for_host(directory: &Path, host: &str) -> Result<Vec<Certificate>, PullCause> {
    let mut parts = Path::new(host).components();
    if !matches!(
        (parts.next(), parts.next()),
        (Some(Component::Normal(_)), None)
    ) {
        return Ok(Vec::new());
    }
    let folder = directory.join(host);
    let fault = |path: &Path, error: io::Error| PullCause::Certificate {
        path: path.to_path_buf(),
        message: error.to_string(),
    };
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(fault(&folder, error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| fault(&folder, error))?.path();
        if path.extension().is_some_and(|extension| extension == "crt") {
            paths.push(path);
        }
    }
    paths.sort();
    let read = |path: &Path| {
        let mut data = Vec::new();
        std::fs::File::open(path)?
            .take(LIMIT + 1)
            .read_to_end(&mut data)?;
        if data.len() as u64 > LIMIT {
            return Err(io::Error::other(format!("it has more than {LIMIT} bytes")));
        }
        Ok(data)
    };
    paths
        .iter()
        .map(|path| {
            Ok(Certificate {
                encoding: CertificateEncoding::Pem,
                data: read(path).map_err(|error| fault(path, error))?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_of_a_host_are_its_own_crt_files_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("registry.lan:5000");
        std::fs::create_dir(&folder).unwrap();
        for (name, content) in [("b.crt", "2"), ("a.crt", "1"), ("client.key", "3")] {
            std::fs::write(folder.join(name), content).unwrap();
        }
        let found = |host: &str| -> Vec<Vec<u8>> {
            let certificates = for_host(directory.path(), host).unwrap();
            certificates.into_iter().map(|one| one.data).collect()
        };
        assert_eq!(found("registry.lan:5000"), [b"1".to_vec(), b"2".to_vec()]);
        assert!(found("registry.lan").is_empty());
        assert!(found("..").is_empty());
    }

    #[test]
    fn certificate_that_is_too_large_is_refused_by_its_path() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("r");
        std::fs::create_dir(&folder).unwrap();
        let file = std::fs::File::create(folder.join("ca.crt")).unwrap();
        file.set_len(LIMIT + 1).unwrap();
        let error = for_host(directory.path(), "r").unwrap_err().to_string();
        assert!(
            error.contains("ca.crt") && error.contains("bytes"),
            "{error}"
        );
    }
}
