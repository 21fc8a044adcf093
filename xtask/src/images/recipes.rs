//! What the images are: their layers, packages, files and configurations. A change of what a layer becomes changes its
//! revision, or [`VERSION`] for all.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::archive::{self, Archive};
use super::layer::{Layer, Snapshot, file_name_of, key_of};
use super::{rootfs, war};
use crate::packages::Apt;
use crate::progress::Step;

/// Part of every key: counts the changes of what is made from the same packages.
const VERSION: &str = "1";

/// An image that is made here.
#[derive(Debug)]
pub struct Recipe {
    /// Its name as manifests write it.
    pub name: &'static str,
    /// Its layers, bottom-most first.
    layers: &'static [LayerRecipe],
    /// Its configuration.
    config: fn() -> Value,
}

/// A layer that is made here.
#[derive(Debug)]
struct LayerRecipe {
    name: &'static str,
    /// Counts the changes of this layer's own content.
    revision: &'static str,
    /// Packages whose versions make a new layer; what they pull in is as new as they are.
    packages: &'static [&'static str],
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// busybox alone.
    Busybox,
    /// A minimal Debian.
    Debian,
    /// The packages on top of the layers below, and then files.
    Added(fn(&Path) -> Result<()>),
}

const BUSYBOX: LayerRecipe = LayerRecipe {
    name: "busybox",
    revision: "",
    packages: &["busybox-static"],
    content: Content::Busybox,
};
const DEBIAN: LayerRecipe = LayerRecipe {
    name: "debian",
    revision: "",
    packages: &[
        "base-files",
        "bash",
        "coreutils",
        "dpkg",
        "libc6",
        "openssl",
        "perl-base",
        "apt",
    ],
    content: Content::Debian,
};
const NGINX: LayerRecipe = LayerRecipe {
    name: "nginx",
    revision: "",
    packages: &["nginx-light"],
    content: Content::Added(nginx_files),
};
const TOMCAT: LayerRecipe = LayerRecipe {
    name: "tomcat",
    revision: ".1",
    packages: &[
        "tomcat10-common",
        "tomcat10-user",
        "default-jre-headless",
        "openjdk-17-jre-headless",
    ],
    content: Content::Added(tomcat_files),
};
const RSYSLOG: LayerRecipe = LayerRecipe {
    name: "rsyslog",
    revision: "",
    packages: &["rsyslog"],
    content: Content::Added(nothing_more),
};
const IPTABLES: LayerRecipe = LayerRecipe {
    name: "iptables",
    revision: "",
    packages: &["iptables"],
    content: Content::Added(nothing_more),
};
const PODMAN: LayerRecipe = LayerRecipe {
    name: "podman",
    revision: "",
    packages: &["podman", "crun", "netavark", "iptables", "busybox-static"],
    content: Content::Added(nothing_more),
};
const PODMAN_CONF: LayerRecipe = LayerRecipe {
    name: "podman-conf",
    revision: "",
    packages: &[],
    content: Content::Added(podman_files),
};
const SAMPLE: LayerRecipe = LayerRecipe {
    name: "sample",
    revision: "",
    packages: &[],
    content: Content::Added(sample_files),
};

/// All images, in the order in which they are made.
pub const RECIPES: &[Recipe] = &[
    Recipe {
        name: "busybox",
        layers: &[BUSYBOX],
        config: || json!({"Env": [PATH], "Cmd": ["sh"]}),
    },
    Recipe {
        name: "geektime/sample:v2",
        layers: &[BUSYBOX, SAMPLE],
        config: || json!({"Env": [PATH], "Cmd": ["sh"]}),
    },
    Recipe {
        name: "debian",
        layers: &[DEBIAN],
        config: || json!({"Env": [PATH], "Cmd": ["bash"]}),
    },
    Recipe {
        name: "nginx",
        layers: &[DEBIAN, NGINX],
        config: || {
            json!({
                "Env": [PATH], "Cmd": ["nginx", "-g", "daemon off;"],
                "ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGQUIT",
            })
        },
    },
    Recipe {
        name: "geektime/tomcat:7.0",
        layers: &[DEBIAN, TOMCAT],
        config: || {
            json!({
                "Env": [PATH, "JAVA_HOME=/usr/lib/jvm/default-java"], "Cmd": [format!("/{TOMCAT_BASE}/bin/start.sh")],
                "ExposedPorts": {"8080/tcp": {}}, "WorkingDir": format!("/{TOMCAT_BASE}"),
            })
        },
    },
    Recipe {
        name: "vmpod/rsyslog",
        layers: &[DEBIAN, RSYSLOG],
        config: || json!({"Env": [PATH], "Cmd": ["rsyslogd", "-n", "-iNONE"]}),
    },
    Recipe {
        name: "vmpod/iptables",
        layers: &[DEBIAN, IPTABLES],
        config: || json!({"Env": [PATH], "Cmd": ["bash"]}),
    },
    Recipe {
        name: "vmpod/podman",
        layers: &[DEBIAN, PODMAN, PODMAN_CONF],
        config: || json!({"Env": [PATH], "Cmd": ["bash"]}),
    },
];

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Makes one image, or finds it in the cache.
///
/// # Errors
/// When a package cannot be had or a file not be written.
pub fn make(name: &str, apt: &Apt, cache: &Path) -> Result<Archive> {
    let recipe = RECIPES
        .iter()
        .find(|recipe| recipe.name == name)
        .with_context(|| format!("no recipe for {name}"))?;
    let mut below: Vec<(String, Layer)> = Vec::new();
    for part in recipe.layers {
        let versions = if part.packages.is_empty() {
            String::new()
        } else {
            apt.candidates(part.packages)?
        };
        let under = below.last().map_or("", |(key, _)| key.as_str());
        let version = format!("{VERSION}{}", part.revision);
        let key = key_of(&[&version, part.name, apt.codename(), &versions, under]);
        let dir = cache.join("layers").join(format!("{}-{key}", part.name));
        let layer = match Layer::cached(&dir) {
            Some(layer) => layer,
            None => make_layer(part, &below, &dir, apt, cache)?,
        };
        below.push((key, layer));
    }
    let layers: Vec<Layer> = below.into_iter().map(|(_, layer)| layer).collect();
    archive::write(recipe.name, &layers, &(recipe.config)(), cache)
}

fn make_layer(
    part: &LayerRecipe,
    below: &[(String, Layer)],
    dir: &Path,
    apt: &Apt,
    cache: &Path,
) -> Result<Layer> {
    let mut step = Step::begin(format!("making the image layer {}", part.name));
    let begun = SystemTime::now();
    let work = cache.join("work").join(file_name_of(part.name));
    let tree: PathBuf = work.join("tree");
    std::fs::create_dir_all(&tree).with_context(|| format!("creating {}", tree.display()))?;
    let before = match part.content {
        Content::Busybox => {
            rootfs::busybox(&tree, &work, apt, &mut step)?;
            None
        }
        Content::Debian => {
            rootfs::debian(&tree, apt, &mut step)?;
            None
        }
        Content::Added(files) => {
            for (_, layer) in below {
                layer.unpack(&tree, &mut step)?;
            }
            let before = Snapshot::of(&tree)?;
            if !part.packages.is_empty() {
                rootfs::install(&tree, part.packages, apt, &mut step)?;
            }
            files(&tree)?;
            Some(before)
        }
    };
    let layer = Layer::write(&tree, before.as_ref(), begun, dir, &work, &mut step)?;
    std::fs::remove_dir_all(&work).with_context(|| format!("removing {}", work.display()))?;
    step.done();
    Ok(layer)
}

/// The packages are all there is to it.
#[expect(
    clippy::unnecessary_wraps,
    reason = "the others of its kind write files"
)]
fn nothing_more(_tree: &Path) -> Result<()> {
    Ok(())
}

/// What an engine in a container is told, as in the images that podman's own project makes: the pod's namespaces are the
/// engine's to begin with, and there is no systemd.
const CONTAINERS_CONF: &str = "[containers]
netns = \"host\"
ipcns = \"host\"
utsns = \"host\"
cgroupns = \"host\"
cgroups = \"disabled\"
log_driver = \"k8s-file\"

[engine]
cgroup_manager = \"cgroupfs\"
events_logger = \"file\"
runtime = \"crun\"
";

fn podman_files(tree: &Path) -> Result<()> {
    rootfs::write(
        tree,
        "etc/containers/containers.conf",
        CONTAINERS_CONF.as_bytes(),
        0o644,
    )
}

fn sample_files(tree: &Path) -> Result<()> {
    rootfs::write(tree, "sample.war", &war::sample(), 0o644)
}

const NGINX_CONF: &str = "user www-data;
worker_processes auto;
pid /run/nginx.pid;
error_log /var/log/nginx/error.log notice;

events {
    worker_connections 1024;
}

http {
    include /etc/nginx/mime.types;
    default_type application/octet-stream;
    access_log /var/log/nginx/access.log combined;
    sendfile on;
    keepalive_timeout 65;
    include /etc/nginx/conf.d/*.conf;
}
";

const NGINX_SITE: &str = "server {
    listen 80;
    server_name localhost;

    location / {
        root /usr/share/nginx/html;
        index index.html index.htm;
    }
}
";

const NGINX_PAGE: &str = "<!DOCTYPE html>\n<html>\n<head><title>nginx</title></head>\n<body><h1>nginx is running</h1></body>\n</html>\n";

/// Paths and logs as the image of the same name on Docker's registry has them.
fn nginx_files(tree: &Path) -> Result<()> {
    rootfs::write(tree, "etc/nginx/nginx.conf", NGINX_CONF.as_bytes(), 0o644)?;
    rootfs::write(
        tree,
        "etc/nginx/conf.d/default.conf",
        NGINX_SITE.as_bytes(),
        0o644,
    )?;
    rootfs::write(
        tree,
        "usr/share/nginx/html/index.html",
        NGINX_PAGE.as_bytes(),
        0o644,
    )?;
    rootfs::link(tree, "var/log/nginx/access.log", "/dev/stdout")?;
    rootfs::link(tree, "var/log/nginx/error.log", "/dev/stderr")
}

/// Where the manifest looks for Tomcat, whatever its version.
const TOMCAT_BASE: &str = "root/apache-tomcat-7.0.42-v2";

const TOMCAT_START: &str = "#!/bin/sh
# Runs Tomcat in the foreground, with this folder as its base.
set -e
CATALINA_BASE=$(cd \"$(dirname \"$0\")/..\" && pwd)
export CATALINA_BASE
export CATALINA_HOME=/usr/share/tomcat10
export CATALINA_TMPDIR=\"$CATALINA_BASE/temp\"
export JAVA_HOME=\"${JAVA_HOME:-/usr/lib/jvm/default-java}\"
exec \"$CATALINA_HOME/bin/catalina.sh\" run
";

/// Read by catalina.sh. A small server that starts soon: no second compiler, one collector thread.
const TOMCAT_ENVIRONMENT: &str = "# Options of the Java machine; set JAVA_OPTS to add to them.
CATALINA_OPTS=\"-XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xshare:auto -Djava.security.egd=file:/dev/urandom $CATALINA_OPTS\"
";

const TOMCAT_SERVER: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>
<Server port=\"-1\">
  <Listener className=\"org.apache.catalina.core.JreMemoryLeakPreventionListener\"/>
  <Service name=\"Catalina\">
    <Connector port=\"8080\" protocol=\"HTTP/1.1\" connectionTimeout=\"20000\"/>
    <Engine name=\"Catalina\" defaultHost=\"localhost\">
      <Host name=\"localhost\" appBase=\"webapps\" unpackWARs=\"true\" autoDeploy=\"true\"/>
    </Engine>
  </Service>
</Server>
";

/// The last value of a property counts. Looking for tag libraries in the server's own archives is most of its start.
const TOMCAT_PROPERTIES: &str = "\ntomcat.util.scan.StandardJarScanFilter.jarsToSkip=*.jar\n";

const TOMCAT_LOGGING: &str = "handlers = java.util.logging.ConsoleHandler
.handlers = java.util.logging.ConsoleHandler
java.util.logging.ConsoleHandler.level = INFO
java.util.logging.ConsoleHandler.formatter = org.apache.juli.OneLineFormatter
java.util.logging.ConsoleHandler.encoding = UTF-8
";

fn tomcat_files(tree: &Path) -> Result<()> {
    let skeleton = tree.join("usr/share/tomcat10/skel/conf");
    for (file, appended) in [
        ("catalina.properties", TOMCAT_PROPERTIES),
        ("context.xml", ""),
        ("web.xml", ""),
    ] {
        let mut content = std::fs::read(skeleton.join(file))
            .with_context(|| format!("Debian's tomcat10-user has no {file}"))?;
        content.extend(appended.as_bytes());
        rootfs::write(tree, &format!("{TOMCAT_BASE}/conf/{file}"), &content, 0o644)?;
    }
    rootfs::write(
        tree,
        &format!("{TOMCAT_BASE}/conf/server.xml"),
        TOMCAT_SERVER.as_bytes(),
        0o644,
    )?;
    rootfs::write(
        tree,
        &format!("{TOMCAT_BASE}/conf/logging.properties"),
        TOMCAT_LOGGING.as_bytes(),
        0o644,
    )?;
    rootfs::write(
        tree,
        &format!("{TOMCAT_BASE}/bin/start.sh"),
        TOMCAT_START.as_bytes(),
        0o755,
    )?;
    rootfs::write(
        tree,
        &format!("{TOMCAT_BASE}/bin/setenv.sh"),
        TOMCAT_ENVIRONMENT.as_bytes(),
        0o755,
    )?;
    rootfs::link(
        tree,
        &format!("{TOMCAT_BASE}/bin/catalina.sh"),
        "/usr/share/tomcat10/bin/catalina.sh",
    )?;
    for folder in ["lib", "logs", "temp", "webapps", "work"] {
        let path = tree.join(TOMCAT_BASE).join(folder);
        std::fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
    }
    if !tree.join("usr/lib/jvm/default-java/bin/java").exists() {
        bail!("the packages brought no Java at /usr/lib/jvm/default-java");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipes_share_their_lower_layers() {
        let bases: Vec<_> = RECIPES
            .iter()
            .filter_map(|recipe| recipe.layers.first())
            .map(|layer| layer.name)
            .collect();
        assert_eq!(bases[..2], ["busybox", "busybox"]);
        assert!(bases[2..].iter().all(|base| *base == "debian"), "{bases:?}");
    }

    #[test]
    fn recipes_with_packages_on_top_stand_on_a_debian() {
        for recipe in RECIPES {
            for (at, layer) in recipe.layers.iter().enumerate() {
                let added = matches!(layer.content, Content::Added(_));
                assert_eq!(added, at > 0, "{}", recipe.name);
                assert!(
                    !added || layer.packages.is_empty() || recipe.layers[0].name == "debian",
                    "{}",
                    recipe.name
                );
            }
        }
    }
}
