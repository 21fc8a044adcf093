//! `kernel.config`: what it asks for, and whether a resulting `.config` has it.
//!
//! Pure text in, findings out; runs on the caller's thread. Kconfig drops an option whose
//! dependency is missing or whose name has changed without a word, which is why a build checks
//! every line. Kconfig's language itself is not interpreted here.

use std::collections::BTreeMap;
use std::fmt;

use thiserror::Error;

/// The text of the fragment that this crate ships.
pub const KERNEL_CONFIG: &str = include_str!("../kernel.config");

/// A fragment's options: symbol without `CONFIG_`, to the value asked for (`None`: not set).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fragment {
    wanted: BTreeMap<String, Option<String>>,
}

/// Why a fragment cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FragmentError {
    #[error(
        "kernel config line {line}: {text:?} is neither CONFIG_NAME=value, nor \
         \"# CONFIG_NAME is not set\", nor a comment"
    )]
    Unreadable { line: usize, text: String },
    #[error("kernel config line {line}: CONFIG_{symbol} is asked for a second time; keep one line")]
    Duplicate { line: usize, symbol: String },
}

/// One option that a resulting `.config` does not have as asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unmet {
    /// Symbol without `CONFIG_`.
    pub symbol: String,
    /// Value asked for, `None` for "is not set".
    pub wanted: Option<String>,
    /// Value in the resulting `.config`, `None` for "is not set".
    pub found: Option<String>,
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |value: &Option<String>| value.clone().unwrap_or_else(|| "not set".to_owned());
        write!(
            f,
            "CONFIG_{} is {}, asked for {}",
            self.symbol,
            show(&self.found),
            show(&self.wanted)
        )
    }
}

impl Fragment {
    /// Reads a fragment.
    ///
    /// # Errors
    /// A line that is no option and no comment, or an option that stands there twice.
    pub fn parse(text: &str) -> Result<Self, FragmentError> {
        let mut wanted = BTreeMap::new();
        for (index, raw) in text.lines().enumerate() {
            let line = index + 1;
            match option(raw) {
                Line::Nothing => {}
                Line::Strange => {
                    return Err(FragmentError::Unreadable {
                        line,
                        text: raw.to_owned(),
                    });
                }
                Line::Option { symbol, value } => {
                    if wanted
                        .insert(symbol.to_owned(), value.map(str::to_owned))
                        .is_some()
                    {
                        return Err(FragmentError::Duplicate {
                            line,
                            symbol: symbol.to_owned(),
                        });
                    }
                }
            }
        }
        Ok(Self { wanted })
    }

    /// Whether the fragment asks for `symbol` (without `CONFIG_`) to be built in.
    pub fn enables(&self, symbol: &str) -> bool {
        self.value(symbol) == Some("y")
    }

    /// The value asked for, `None` where the symbol is absent or asked not to be set.
    pub fn value(&self, symbol: &str) -> Option<&str> {
        self.wanted.get(symbol)?.as_deref()
    }

    /// Whether the fragment asks for `symbol` not to be set.
    pub fn disables(&self, symbol: &str) -> bool {
        matches!(self.wanted.get(symbol), Some(None))
    }

    /// Every option of this fragment that `dot_config` (the text of a `.config`) does not have.
    pub fn unmet(&self, dot_config: &str) -> Vec<Unmet> {
        let have: BTreeMap<&str, &str> = dot_config
            .lines()
            .filter_map(|line| match option(line) {
                Line::Option {
                    symbol,
                    value: Some(value),
                } => Some((symbol, value)),
                _ => None,
            })
            .collect();
        self.wanted
            .iter()
            .filter(|(symbol, wanted)| have.get(symbol.as_str()).copied() != wanted.as_deref())
            .map(|(symbol, wanted)| Unmet {
                symbol: symbol.clone(),
                wanted: wanted.clone(),
                found: have.get(symbol.as_str()).map(|value| (*value).to_owned()),
            })
            .collect()
    }
}

enum Line<'a> {
    Nothing,
    Strange,
    Option {
        symbol: &'a str,
        value: Option<&'a str>,
    },
}

fn option(raw: &str) -> Line<'_> {
    let text = raw.trim();
    let is_symbol = |name: &str| {
        !name.is_empty()
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    if let Some(comment) = text.strip_prefix('#') {
        let unset = comment
            .trim()
            .strip_prefix("CONFIG_")
            .and_then(|rest| rest.strip_suffix(" is not set"))
            .filter(|name| is_symbol(name));
        return match unset {
            Some(symbol) => Line::Option {
                symbol,
                value: None,
            },
            None => Line::Nothing,
        };
    }
    if text.is_empty() {
        return Line::Nothing;
    }
    match text
        .strip_prefix("CONFIG_")
        .and_then(|rest| rest.split_once('='))
    {
        // Kconfig writes "# CONFIG_X is not set"; "=n" means the same in a fragment.
        Some((symbol, "n")) if is_symbol(symbol) => Line::Option {
            symbol,
            value: None,
        },
        Some((symbol, value)) if is_symbol(symbol) && !value.is_empty() => Line::Option {
            symbol,
            value: Some(value),
        },
        _ => Line::Strange,
    }
}

#[cfg(test)]
mod tests;
