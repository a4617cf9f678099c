//! The words of `image`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Which nodes are meant.
#[derive(Debug, Clone, Default, Args)]
pub struct OnNodes {
    /// Only this node; may be given several times.
    #[arg(long = "node", value_name = "NODE")]
    pub nodes: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Shows images, and which nodes have each.
    Ls {
        /// Only this image.
        image: Option<String>,
        #[command(flatten)]
        on: OnNodes,
    },
    /// Has nodes pull an image from its registry, also those that have it.
    Pull {
        image: String,
        #[command(flatten)]
        on: OnNodes,
        /// All ready nodes, as when no node is named.
        #[arg(long, conflicts_with = "nodes")]
        all: bool,
    },
    /// Brings images from a file of this machine to all ready nodes.
    Load {
        /// A tar archive of an OCI layout, as docker save writes it, packed or not; - reads standard input.
        file: PathBuf,
        #[command(flatten)]
        on: OnNodes,
    },
    /// Writes images of a node as an archive (-o FILE, or standard output) that image load and docker load read.
    Save {
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
        /// What -o was given; standard output when nothing, or -.
        #[arg(skip)]
        file: Option<PathBuf>,
        #[command(flatten)]
        on: OnNodes,
    },
    /// Takes images away from all nodes that have them; one that a container runs on keeps its last name.
    Rm {
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
        /// Also the last name of an image that a container runs on; its layers stay as long as the container.
        #[arg(short, long)]
        force: bool,
        #[command(flatten)]
        on: OnNodes,
    },
    /// Gives an image another name, on all nodes that have it.
    Tag {
        source: String,
        target: String,
        #[command(flatten)]
        on: OnNodes,
    },
    /// Removes what no image needs.
    Prune {
        /// Also the images that no container runs on.
        #[arg(short, long)]
        all: bool,
        /// Shows what would be removed, and removes nothing.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        on: OnNodes,
    },
    /// Shows how an image was made.
    History {
        image: String,
        #[command(flatten)]
        on: OnNodes,
    },
    /// Prints all that is known of an image.
    Inspect {
        image: String,
        #[command(flatten)]
        on: OnNodes,
    },
}
