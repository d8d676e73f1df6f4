//! Writes an image as a tar of the OCI image layout (version 1.1), which containerd, Docker and skopeo read.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::process;

/// An image of one layer.
pub(crate) struct Image<'a> {
    /// The image's name with its tag.
    pub(crate) name: String,
    /// The directory that becomes its file system.
    pub(crate) root: &'a Path,
    pub(crate) entrypoint: &'a [&'a str],
    pub(crate) command: &'a [&'a str],
}

/// A file of the layout, named by the digest of its content.
struct Blob {
    digest: String,
    size: u64,
}

// === impl Image ===

impl Image<'_> {
    /// Writes it to `file`. Equal content gives equal bytes: no time, owner or order of this machine goes in.
    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        let work = file.with_extension("layout");
        if work.exists() {
            fs::remove_dir_all(&work)
                .with_context(|| format!("cannot remove {}", work.display()))?;
        }
        let blobs = work.join("blobs/sha256");
        fs::create_dir_all(&blobs).with_context(|| format!("cannot make {}", blobs.display()))?;
        let layer = work.join("layer");
        tar(self.root, &layer)?;
        let layer = Blob::keep(&layer, &blobs)?;
        let config = self.config(&layer);
        let config = Blob::write(&config, &blobs)?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config.descriptor("application/vnd.oci.image.config.v1+json"),
            "layers": [layer.descriptor("application/vnd.oci.image.layer.v1.tar")],
        });
        let manifest = Blob::write(&manifest, &blobs)?;
        let mut entry = manifest.descriptor("application/vnd.oci.image.manifest.v1+json");
        let tag = self.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        if let Some(entry) = entry.as_object_mut() {
            entry.insert(
                "annotations".to_owned(),
                json!({"io.containerd.image.name": self.name, "org.opencontainers.image.ref.name": tag}),
            );
        }
        let index = json!({"schemaVersion": 2, "manifests": [entry]});
        write(&work.join("index.json"), &index)?;
        write(&work.join("oci-layout"), &json!({"imageLayoutVersion": "1.0.0"}))?;
        // The list that `docker load` of older versions reads.
        let blob = |blob: &Blob| format!("blobs/sha256/{}", blob.digest);
        let list =
            json!([{"Config": blob(&config), "RepoTags": [self.name], "Layers": [blob(&layer)]}]);
        write(&work.join("manifest.json"), &list)?;
        tar(&work, file)?;
        for directory in [&work, self.root] {
            fs::remove_dir_all(directory)
                .with_context(|| format!("cannot remove {}", directory.display()))?;
        }
        Ok(())
    }

    fn config(&self, layer: &Blob) -> Value {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        json!({
            "architecture": architecture,
            "os": "linux",
            "config": {
                "Env": ["PATH=/usr/local/bin:/bin"],
                "Entrypoint": self.entrypoint,
                "Cmd": self.command,
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", layer.digest)]},
        })
    }
}

// === impl Blob ===

impl Blob {
    fn write(value: &Value, blobs: &Path) -> Result<Self> {
        let path = blobs.join("new");
        write(&path, value)?;
        Self::keep(&path, blobs)
    }

    /// Moves a file to the name that its digest gives it.
    fn keep(path: &Path, blobs: &Path) -> Result<Self> {
        let printed = process::output(process::command("sha256sum").arg("--binary").arg(path))?;
        let digest = printed.split(' ').next().unwrap_or_default().to_owned();
        let size = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
        let to = blobs.join(&digest);
        fs::rename(path, &to).with_context(|| format!("cannot make {}", to.display()))?;
        Ok(Self { digest, size: size.len() })
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": format!("sha256:{}", self.digest), "size": self.size})
    }
}

fn write(path: &PathBuf, value: &Value) -> Result<()> {
    fs::write(path, value.to_string()).with_context(|| format!("cannot write {}", path.display()))
}

fn tar(directory: &Path, file: &Path) -> Result<()> {
    let mut command = process::command("tar");
    command.args(["--create", "--sort=name", "--mtime=@0", "--owner=0", "--group=0"]);
    command.args(["--numeric-owner", "--format=gnu", "--file"]).arg(file);
    command.arg("--directory").arg(directory).arg(".");
    process::output(&mut command).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_content_gives_equal_bytes_and_digests_that_agree() {
        let directory = tempfile::tempdir().unwrap();
        let write_one = |file: &str| {
            let root = directory.path().join("root");
            fs::create_dir_all(root.join("bin")).unwrap();
            fs::write(root.join("bin/program"), b"content").unwrap();
            let file = directory.path().join(file);
            let image = Image {
                name: "sluice.dev/test:1".to_owned(),
                root: &root,
                entrypoint: &["/bin/program"],
                command: &[],
            };
            image.write(&file).unwrap();
            file
        };
        let (first, second) = (write_one("one.tar"), write_one("two.tar"));
        assert_eq!(fs::read(&first).unwrap(), fs::read(&second).unwrap());
        let unpacked = directory.path().join("unpacked");
        fs::create_dir(&unpacked).unwrap();
        process::output(process::command("tar").arg("-xf").arg(&first).arg("-C").arg(&unpacked))
            .unwrap();
        for blob in fs::read_dir(unpacked.join("blobs/sha256")).unwrap().flatten() {
            let printed = process::output(process::command("sha256sum").arg(blob.path())).unwrap();
            assert!(printed.starts_with(&*blob.file_name().to_string_lossy()), "{printed}");
        }
        let index = fs::read_to_string(unpacked.join("index.json")).unwrap();
        assert!(index.contains("sluice.dev/test:1"), "{index}");
    }
}
