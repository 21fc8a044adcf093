//! `cargo xtask images`: the images that the examples name, made from Debian packages, so that they run with no
//! registry. This file owns the subcommand and the order of the work; `recipes` says what the images are, `rootfs` makes
//! trees, `layer` and `archive` turn them into OCI archives, `war` is the example's web application.
//!
//! ```text
//! CACHE/images/layers/KEY/layer.tar.zst layer.json    a layer, by the hash of what goes into it
//! CACHE/images/KEY/NAME.oci.tar                       an image, by the hash of its layers and configuration
//! ```

mod archive;
mod layer;
mod recipes;
mod rootfs;
mod war;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Deserialize;

use self::archive::Archive;
use self::recipes::RECIPES;
use crate::bundle;
use crate::host::Host;
use crate::packages::{self, Apt, wanted};
use crate::process::Invocation;
use crate::progress::Step;
use crate::workspace;

#[derive(Debug, Args)]
pub struct ImagesArgs {
    /// Which images; all unless named
    names: Vec<String>,
    /// Make the archives and print where they are, without importing them
    #[arg(long)]
    no_import: bool,
}

/// Runs the subcommand.
///
/// # Errors
/// When a name is unknown, or an image cannot be made or imported.
pub fn run(args: &ImagesArgs) -> Result<u8> {
    let names: Vec<&str> = if args.names.is_empty() {
        RECIPES.iter().map(|recipe| recipe.name).collect()
    } else {
        args.names
            .iter()
            .map(|name| known(name))
            .collect::<Result<_>>()?
    };
    if args.no_import {
        for archive in make(&names)? {
            println!("{}", archive.path.display());
        }
        return Ok(0);
    }
    let bundle = bundle::build(false)?;
    let host = Host::ready()?;
    let place = host.place_bundle(&bundle)?;
    import(&make(&names)?, &host, &place, Refresh::Changed)?;
    Ok(0)
}

/// When an image that the store has by name is imported again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refresh {
    /// When the one made here is another.
    Changed,
    /// Never: what the person put there stays.
    Missing,
}

/// Makes the images of `names` that are made here and puts them into the store of `host`, whose bundle lies at `place`.
///
/// # Errors
/// When an image cannot be made or imported.
pub fn ensure(names: &[&str], host: &Host, place: &Path, refresh: Refresh) -> Result<()> {
    let mut wanted = names.to_vec();
    if refresh == Refresh::Missing && !wanted.is_empty() {
        let present = stored(host, place)?;
        wanted.retain(|name| !present.iter().any(|image| image.name == normalised(name)));
    }
    if wanted.is_empty() {
        return Ok(());
    }
    import(&make(&wanted)?, host, place, refresh)
}

/// The archive of the image `name`, brought up to date.
///
/// # Errors
/// When there is no recipe for it, or it cannot be made.
pub fn archive(name: &str) -> Result<PathBuf> {
    let mut made = make(&[known(name)?])?;
    let archive = made.pop().context("no archive was made")?;
    Ok(archive.path)
}

/// The paths of all archives, brought up to date.
///
/// # Errors
/// As [`archive`].
pub fn archives() -> Result<Vec<String>> {
    let made = make(&all())?;
    Ok(made
        .iter()
        .map(|archive| archive.path.to_string_lossy().into_owned())
        .collect())
}

/// Every image that is made here.
#[must_use]
pub fn all() -> Vec<&'static str> {
    RECIPES.iter().map(|recipe| recipe.name).collect()
}

/// The images of a manifest that are made here, found by its `image:` lines.
#[must_use]
pub fn named_in(manifest: &str) -> Vec<&'static str> {
    let mut names = Vec::new();
    for line in manifest.lines() {
        let line = line.trim_start().trim_start_matches("- ").trim_start();
        let Some(value) = line.strip_prefix("image:") else {
            continue;
        };
        let value = value.split(" #").next().unwrap_or(value).trim();
        let value = value.trim_matches(['"', '\'']);
        if let Ok(name) = known(value)
            && !names.contains(&name)
        {
            names.push(name);
        }
    }
    names
}

/// The recipe's own name for one as people write it.
fn known(name: &str) -> Result<&'static str> {
    let found = RECIPES
        .iter()
        .find(|recipe| normalised(recipe.name) == normalised(name));
    match found {
        Some(recipe) => Ok(recipe.name),
        None => bail!(
            "there is no recipe for the image {name}; there are: {}",
            all().join(", ")
        ),
    }
}

/// The full name that the store gives an image of Docker's registry.
fn normalised(name: &str) -> String {
    let name = name.strip_prefix("docker.io/").unwrap_or(name);
    let name = name.strip_prefix("library/").unwrap_or(name);
    let tagged = if name.contains(':') {
        name.to_owned()
    } else {
        format!("{name}:latest")
    };
    if tagged.contains('/') {
        format!("docker.io/{tagged}")
    } else {
        format!("docker.io/library/{tagged}")
    }
}

/// Brings archives up to date, one after the other: two cores are soon busy.
fn make(names: &[&str]) -> Result<Vec<Archive>> {
    packages::ensure(wanted::IMAGES)?;
    let cache = workspace::cache_dir()?.join("images");
    fs::create_dir_all(&cache).with_context(|| format!("creating {}", cache.display()))?;
    let lock =
        fs::File::create(cache.join("lock")).context("opening the lock of the image cache")?;
    lock.lock()
        .context("waiting for another cargo xtask images")?;
    sweep(&cache.join("work"))?;
    let apt = Apt::open()?;
    let mut step = Step::begin("looking for package versions");
    apt.refresh(&mut step)?;
    step.done();
    names
        .iter()
        .map(|name| recipes::make(name, &apt, &cache))
        .collect()
}

/// Removes what an interrupted run left. Nothing is mounted there but in namespaces that ended with their process.
fn sweep(work: &Path) -> Result<()> {
    if work.exists() {
        fs::remove_dir_all(work).with_context(|| format!("removing {}", work.display()))?;
    }
    fs::create_dir_all(work).with_context(|| format!("creating {}", work.display()))
}

/// An image as `vmpod images --output json` lists it.
#[derive(Debug, Deserialize)]
struct Stored {
    name: String,
    digest: String,
}

fn stored(host: &Host, place: &Path) -> Result<Vec<Stored>> {
    let mut text = String::new();
    let arguments = ["images", "--output", "json"];
    let code = vmpod(host, place, &arguments, &mut |line| text.push_str(line))?;
    if code != 0 {
        bail!("`vmpod images` failed with exit status {code}; its message is above");
    }
    serde_json::from_str(&text).context("reading what `vmpod images --output json` printed")
}

fn import(archives: &[Archive], host: &Host, place: &Path, refresh: Refresh) -> Result<()> {
    let present = stored(host, place)?;
    for archive in archives {
        let name = normalised(archive.name);
        let found = present.iter().find(|image| image.name == name);
        if found.is_some_and(|image| refresh == Refresh::Missing || image.digest == archive.digest)
        {
            continue;
        }
        let path = archive
            .path
            .to_str()
            .context("the cache's path is not text")?;
        let step = Step::begin(format!("importing the image {}", archive.name));
        let code = vmpod(
            host,
            place,
            &["image", "import", "--quiet", path],
            &mut |_| {},
        )?;
        if code != 0 {
            bail!(
                "`vmpod image import {path}` failed with exit status {code}; its message is above"
            );
        }
        step.done();
    }
    Ok(())
}

fn vmpod(host: &Host, place: &Path, arguments: &[&str], lines: &mut dyn FnMut(&str)) -> Result<u8> {
    let program = place.join("bin/vmpod").to_string_lossy().into_owned();
    let mut all = vec![program];
    all.extend(arguments.iter().map(|&argument| argument.to_owned()));
    let invocation = Invocation {
        arguments: all,
        directory: env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
        environment: Vec::new(),
        terminal: false,
    };
    host.run(&invocation, Some(lines))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_in_with_each_way_of_writing_finds_the_images_made_here() {
        let manifest = "spec:\n  containers:\n  - image: nginx\n    name: a\n  - name: b\n    image: \"docker.io/library/busybox:latest\" # note\n\
                        \n  - image: nginx\n  - image: quay.io/other\n  - image: geektime/sample:v2\n  - image: nginx:1.25\n";
        assert_eq!(
            named_in(manifest),
            ["nginx", "busybox", "geektime/sample:v2"]
        );
    }

    #[test]
    fn known_with_a_foreign_name_lists_the_recipes() {
        let error = known("redis").unwrap_err().to_string();
        assert!(
            error.contains("redis") && error.contains("geektime/tomcat:7.0"),
            "{error}"
        );
    }
}
