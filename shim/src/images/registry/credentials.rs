//! Credentials as Docker keeps them: `config.json` with `auths`, `credHelpers` and `credsStore`.
//!
//! Helpers are programs named `docker-credential-NAME`, asked by the protocol of docker/docker-credential-helpers:
//! the server on standard input, JSON on standard output. Nothing is stored here, and secrets are never logged.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use oci_client::secrets::RegistryAuth;
use serde::Deserialize;
use thiserror::Error;
use tokio::io::AsyncWriteExt;

/// The name under which Docker files credentials for its own registry.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";
/// How long a helper may take; some ask a cloud service.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest configuration file that is read.
const CONFIG_LIMIT: u64 = 4 << 20;

/// Where credentials come from.
#[derive(Clone, Default)]
pub enum CredentialSource {
    /// `$DOCKER_CONFIG/config.json`, or `~/.docker/config.json`; none if there is no such file.
    #[default]
    DockerConfig,
    /// A file of the same form at another place, which must exist.
    File(PathBuf),
    /// For every registry asked, mirrors included.
    Basic {
        /// Login name.
        user: String,
        /// Password or access token.
        password: String,
    },
    /// Texts of that form with the names of where they are from, the first that knows the host; then [`Self::DockerConfig`].
    /// No helper that they name is run.
    Texts(Vec<(String, Vec<u8>)>),
    /// No credentials.
    Anonymous,
}

impl fmt::Debug for CredentialSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DockerConfig => f.write_str("DockerConfig"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Basic { user, .. } => f
                .debug_struct("Basic")
                .field("user", user)
                .finish_non_exhaustive(),
            Self::Texts(texts) => {
                let names = texts.iter().map(|(name, _)| name).collect::<Vec<_>>();
                f.debug_tuple("Texts").field(&names).finish()
            }
            Self::Anonymous => f.write_str("Anonymous"),
        }
    }
}

/// Why credentials could not be had.
#[derive(Debug, Error)]
pub enum CredentialError {
    /// The file cannot be read.
    #[error("reading the registry credentials in {} failed", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("the registry credentials in {} cannot be used: {reason}", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A helper program failed.
    #[error("the credential helper {program} failed for {server}: {reason}; correct credHelpers or credsStore in {}", path.display())]
    Helper {
        /// The program.
        program: String,
        /// The registry it was asked about.
        server: String,
        /// What it said.
        reason: String,
        /// The file that names it.
        path: PathBuf,
    },
    /// A kind of credential that is not spoken.
    #[error(
        "the credentials for {server} are an identity token, which is not supported; log in with a user name and a password or access token"
    )]
    IdentityToken {
        /// The registry.
        server: String,
    },
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct DockerConfig {
    auths: HashMap<String, AuthEntry>,
    cred_helpers: HashMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct AuthEntry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

impl CredentialSource {
    /// The credentials for a registry host such as `docker.io` or `127.0.0.1:5000`.
    ///
    /// # Errors
    /// [`CredentialError`]; having none is not an error but `RegistryAuth::Anonymous`.
    pub(super) async fn for_host(&self, host: &str) -> Result<RegistryAuth, CredentialError> {
        let path = match self {
            Self::Anonymous => return Ok(RegistryAuth::Anonymous),
            Self::Basic { user, password } => {
                return Ok(RegistryAuth::Basic(user.clone(), password.clone()));
            }
            Self::File(path) => path.clone(),
            Self::Texts(texts) => {
                for (name, text) in texts {
                    let auth = from_text(name, text, host)?;
                    if auth != RegistryAuth::Anonymous {
                        return Ok(auth);
                    }
                }
                return Box::pin(Self::DockerConfig.for_host(host)).await;
            }
            Self::DockerConfig => match default_path() {
                Some(path) if path.is_file() => path,
                _ => return Ok(RegistryAuth::Anonymous),
            },
        };
        let config = read(&path)?;
        let servers = servers(host);
        let helper = servers
            .iter()
            .find_map(|server| Some((server, config.cred_helpers.get(server)?)));
        let store = config
            .creds_store
            .as_ref()
            .filter(|store| !store.is_empty());
        let asked = match (helper, store) {
            (Some((server, helper)), _) => Some((server.as_str(), helper)),
            (None, Some(store)) => servers.first().map(|server| (server.as_str(), store)),
            (None, None) => None,
        };
        if let Some((server, helper)) = asked
            && let Some(found) = ask_helper(helper, server, &path).await?
        {
            return Ok(found);
        }
        from_auths(&config, &servers, &path)
    }
}

fn from_auths(
    config: &DockerConfig,
    servers: &[String],
    path: &Path,
) -> Result<RegistryAuth, CredentialError> {
    let entry = config
        .auths
        .iter()
        .find(|(key, _)| servers.iter().any(|server| same_server(key, server)));
    entry.map_or(Ok(RegistryAuth::Anonymous), |(server, entry)| {
        from_entry(entry, server, path)
    })
}

/// What a text, which is from `name`, says of a host.
fn from_text(name: &str, text: &[u8], host: &str) -> Result<RegistryAuth, CredentialError> {
    let path = Path::new(name);
    from_auths(&parse(text, path)?, &servers(host), path)
}

fn default_path() -> Option<PathBuf> {
    let folder = match std::env::var_os("DOCKER_CONFIG") {
        Some(folder) if !folder.is_empty() => PathBuf::from(folder),
        _ => PathBuf::from(std::env::var_os("HOME")?).join(".docker"),
    };
    Some(folder.join("config.json"))
}

/// The names under which a host may be filed, the usual one first.
fn servers(host: &str) -> Vec<String> {
    let mut names = Vec::new();
    if matches!(
        host,
        "docker.io" | "index.docker.io" | "registry-1.docker.io"
    ) {
        names.extend(
            [
                DOCKER_HUB,
                "docker.io",
                "index.docker.io",
                "registry-1.docker.io",
            ]
            .map(str::to_owned),
        );
    } else {
        names.push(host.to_owned());
    }
    names
}

/// Keys of `auths` are hosts or URLs.
fn same_server(key: &str, server: &str) -> bool {
    fn host(text: &str) -> &str {
        let text = text
            .strip_prefix("https://")
            .or_else(|| text.strip_prefix("http://"))
            .unwrap_or(text);
        text.split('/').next().unwrap_or(text)
    }
    host(key) == host(server)
}

fn read(path: &Path) -> Result<DockerConfig, CredentialError> {
    let failed = |source| CredentialError::Read {
        path: path.to_path_buf(),
        source,
    };
    let size = std::fs::metadata(path).map_err(failed)?.len();
    if size > CONFIG_LIMIT {
        return Err(CredentialError::Form {
            path: path.to_path_buf(),
            reason: format!("the file has {size} bytes"),
        });
    }
    parse(&std::fs::read(path).map_err(failed)?, path)
}

fn parse(text: &[u8], path: &Path) -> Result<DockerConfig, CredentialError> {
    // Of the parser's message only the place is told: the text around it may be a secret.
    serde_json::from_slice(text).map_err(|error| CredentialError::Form {
        path: path.to_path_buf(),
        reason: format!(
            "not valid JSON of its kind at line {}, column {}",
            error.line(),
            error.column()
        ),
    })
}

fn from_entry(
    entry: &AuthEntry,
    server: &str,
    path: &Path,
) -> Result<RegistryAuth, CredentialError> {
    let set = |text: &Option<String>| {
        text.as_deref()
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
    };
    if let Some(token) = set(&entry.registrytoken) {
        return Ok(RegistryAuth::Bearer(token));
    }
    if set(&entry.identitytoken).is_some() {
        return Err(CredentialError::IdentityToken {
            server: server.to_owned(),
        });
    }
    if let (Some(user), Some(password)) = (set(&entry.username), set(&entry.password)) {
        return Ok(RegistryAuth::Basic(user, password));
    }
    let Some(auth) = set(&entry.auth) else {
        return Ok(RegistryAuth::Anonymous);
    };
    let decoded = base64::engine::general_purpose::STANDARD
        .decode(auth.trim())
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok());
    // Docker itself pads with NUL.
    let pair = decoded
        .as_deref()
        .map(|text| text.trim_end_matches('\0'))
        .and_then(|text| text.split_once(':'));
    match pair {
        Some((user, password)) => Ok(RegistryAuth::Basic(user.to_owned(), password.to_owned())),
        None => Err(CredentialError::Form {
            path: path.to_path_buf(),
            reason: format!("auth of {server} is not base64 of user:password"),
        }),
    }
}

/// Asks a helper; `None` when it knows nothing of the server.
async fn ask_helper(
    helper: &str,
    server: &str,
    path: &Path,
) -> Result<Option<RegistryAuth>, CredentialError> {
    let program = format!("docker-credential-{helper}");
    let failed = |reason: String| CredentialError::Helper {
        program: program.clone(),
        server: server.to_owned(),
        reason,
        path: path.to_path_buf(),
    };
    if helper.contains('/') {
        return Err(failed("its name has a slash".into()));
    }
    ask_program(Path::new(&program), server, failed).await
}

/// Runs a helper program by the protocol.
async fn ask_program(
    program: &Path,
    server: &str,
    failed: impl Fn(String) -> CredentialError,
) -> Result<Option<RegistryAuth>, CredentialError> {
    let run = async {
        let mut child = tokio::process::Command::new(program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut input) = child.stdin.take() {
            // A helper that answers without reading closes the pipe early; its answer tells what happened.
            let _ = input.write_all(format!("{server}\n").as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = match tokio::time::timeout(HELPER_TIMEOUT, run).await {
        Err(_) => {
            return Err(failed(format!(
                "no answer within {} s",
                HELPER_TIMEOUT.as_secs()
            )));
        }
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
            return Err(failed("the program is not installed".into()));
        }
        Ok(Err(error)) => return Err(failed(error.to_string())),
        Ok(Ok(output)) => output,
    };
    if !output.status.success() {
        // Helpers print their errors on standard output; this one is part of the protocol.
        let said = String::from_utf8_lossy(&output.stdout);
        if said.contains("credentials not found") {
            return Ok(None);
        }
        let said = if said.trim().is_empty() {
            String::from_utf8_lossy(&output.stderr)
        } else {
            said
        };
        return Err(failed(said.trim().chars().take(300).collect()));
    }
    let answer: HelperAnswer = serde_json::from_slice(&output.stdout)
        .map_err(|_| failed("its answer is not the JSON of the protocol".into()))?;
    match answer.username.as_str() {
        "<token>" => Err(CredentialError::IdentityToken {
            server: server.to_owned(),
        }),
        "" => Ok(None),
        user => Ok(Some(RegistryAuth::Basic(user.to_owned(), answer.secret))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn config(text: &str) -> (tempfile::TempDir, CredentialSource) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        (dir, CredentialSource::File(path))
    }

    fn basic(user: &str, password: &str) -> RegistryAuth {
        RegistryAuth::Basic(user.into(), password.into())
    }

    #[tokio::test]
    async fn auths_are_found_by_host_and_by_url() {
        let (_dir, source) = config(
            r#"{"auths":{"127.0.0.1:5000":{"auth":"dTpw"},"https://quay.io/v2/":{"username":"q","password":"p:w"},
                "https://index.docker.io/v1/":{"auth":"aHViOnB3"},"bad.example":{"auth":"!"},"id.example":{"identitytoken":"t"}}}"#,
        );
        assert_eq!(
            source.for_host("127.0.0.1:5000").await.unwrap(),
            basic("u", "p")
        );
        assert_eq!(source.for_host("quay.io").await.unwrap(), basic("q", "p:w"));
        assert_eq!(
            source.for_host("docker.io").await.unwrap(),
            basic("hub", "pw")
        );
        assert_eq!(
            source.for_host("ghcr.io").await.unwrap(),
            RegistryAuth::Anonymous
        );
        assert!(matches!(
            source.for_host("bad.example").await,
            Err(CredentialError::Form { .. })
        ));
        assert!(matches!(
            source.for_host("id.example").await,
            Err(CredentialError::IdentityToken { .. })
        ));
    }

    #[tokio::test]
    async fn config_that_is_no_json_is_an_error_without_its_text() {
        let (_dir, source) = config(r#"{"auths":{"h":{"auth":"dTpwYXNz"#);
        let error = source.for_host("h").await.unwrap_err().to_string();
        assert!(
            error.contains("line 1") && !error.contains("dTpw"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn helper_is_asked_by_the_protocol_and_its_failures_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("docker-credential-vmpodtest");
        std::fs::write(
            &script,
            "#!/bin/sh\nread server\n[ \"$1\" = get ] || exit 9\nif [ \"$server\" = known.example ]; then echo '{\"ServerURL\":\"x\",\"Username\":\"helped\",\"Secret\":\"s\"}'; exit 0; fi\nif [ \"$server\" = broken.example ]; then echo 'keychain is locked'; exit 1; fi\necho 'credentials not found in native keychain'; exit 1\n",
        )
        .unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        let failed = |reason| CredentialError::Helper {
            program: "p".into(),
            server: "s".into(),
            reason,
            path: PathBuf::new(),
        };
        let ask = |server: &'static str| ask_program(&script, server, failed);
        assert_eq!(
            ask("known.example").await.unwrap(),
            Some(basic("helped", "s"))
        );
        assert_eq!(ask("unknown.example").await.unwrap(), None);
        assert!(
            ask("broken.example")
                .await
                .unwrap_err()
                .to_string()
                .contains("keychain is locked")
        );
        let (_config, source) = config(
            r#"{"credHelpers":{"known.example":"vmpod/../x"},"credsStore":"vmpod-no-such-helper","auths":{}}"#,
        );
        assert!(
            source
                .for_host("known.example")
                .await
                .unwrap_err()
                .to_string()
                .contains("slash")
        );
        assert!(
            source
                .for_host("other.example")
                .await
                .unwrap_err()
                .to_string()
                .contains("not installed")
        );
    }
}
