//! Generates the Rust side of `proto/agent.proto` and a module file that includes it.

use std::path::PathBuf;
use std::{env, fs};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    println!("cargo::rerun-if-changed=proto/agent.proto");
    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .inputs(["proto/agent.proto"])
        .include("proto")
        .rust_protobuf()
        .customize(ttrpc_codegen::Customize {
            async_all: true,
            ..Default::default()
        })
        .rust_protobuf_customize(
            ttrpc_codegen::ProtobufCustomize::default()
                .gen_mod_rs(false)
                .generate_accessors(false),
        )
        .run()?;
    // The generated files begin with inner attributes, which `include!` does not take: a `#[path]` module does.
    let modules = ["agent", "agent_ttrpc"]
        .iter()
        .map(|name| {
            format!(
                "#[path = {:?}]\npub mod {name};\n",
                out.join(format!("{name}.rs"))
            )
        })
        .collect::<String>();
    fs::write(out.join("generated.rs"), modules)?;
    Ok(())
}
