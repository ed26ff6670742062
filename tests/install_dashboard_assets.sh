#!/usr/bin/env bash
# Usage: tests/install_dashboard_assets.sh PYTHON
# Puts the browser files of PYTHON's visdom in place from the npm registry. visdom's server fetches them from content
# delivery networks when it first starts; machines that reach only package registries cannot start it without this.
set -euo pipefail

python=${1:?"the Python whose visdom gets the files is missing, such as .venv/bin/python"}
read -r version static < <("$python" -c '
import importlib.metadata, importlib.util, pathlib
print(importlib.metadata.version("visdom"), pathlib.Path(importlib.util.find_spec("visdom").origin).parent / "static")')
[ "$(cat "$static/version.built" 2>/dev/null)" = "$version" ] && exit 0
command -v npm >/dev/null || { echo "install_dashboard_assets: npm is missing" >&2; exit 1; }

echo "install_dashboard_assets: visdom's browser files, from the npm registry"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# npm package@version, a file in it, where visdom's pages look for it.
cat >files <<'LIST'
jquery@3.1.1 dist/jquery.min.js js/jquery.min.js
bootstrap@3.3.7 dist/js/bootstrap.min.js js/bootstrap.min.js
bootstrap@3.3.7 dist/css/bootstrap.min.css css/bootstrap.min.css
bootstrap@3.3.7 dist/fonts/glyphicons-halflings-regular.eot fonts/glyphicons-halflings-regular.eot
bootstrap@3.3.7 dist/fonts/glyphicons-halflings-regular.woff fonts/glyphicons-halflings-regular.woff
bootstrap@3.3.7 dist/fonts/glyphicons-halflings-regular.woff2 fonts/glyphicons-halflings-regular.woff2
bootstrap@3.3.7 dist/fonts/glyphicons-halflings-regular.ttf fonts/glyphicons-halflings-regular.ttf
bootstrap@3.3.7 dist/fonts/glyphicons-halflings-regular.svg fonts/glyphicons-halflings-regular.svg#glyphicons_halflingsregular
react@16.2.0 umd/react.production.min.js js/react-react.min.js
react-dom@16.2.0 umd/react-dom.production.min.js js/react-dom.min.js
react-modal@3.1.10 dist/react-modal.min.js js/react-modal.min.js
plotly.js-dist-min@2.11.1 plotly.min.js js/plotly-plotly.min.js
sjcl@1.0.7 sjcl.js js/sjcl.js
layout-bin-packer@1.4.0 dist/layout-bin-packer.js js/layout_bin_packer.js
layout-bin-packer@1.4.0 dist/layout-bin-packer.js.map js/layout-bin-packer.js.map
d3@3.5.17 d3.min.js js/d3.v3.min.js
d3-selection-multi@1.0.1 build/d3-selection-multi.min.js js/d3-selection-multi.v1.js
save-svg-as-png@1.4.17 lib/saveSvgAsPng.js js/saveSvgAsPng.js
react-resizable@1.4.6 css/styles.css css/react-resizable-styles.css
react-grid-layout@0.16.3 css/styles.css css/react-grid-layout-styles.css
classnames@2.2.5 index.js fonts/classnames
mathjax@2.7.5 MathJax.js js/mathjax/2.7.5/MathJax.js
mathjax@2.7.5 config/Safe.js js/mathjax/2.7.5/config/Safe.js
mathjax@2.7.5 config/TeX-AMS-MML_HTMLorMML.js js/mathjax/2.7.5/config/TeX-AMS-MML_HTMLorMML.js
mathjax@2.7.5 extensions/Safe.js js/mathjax/2.7.5/extensions/Safe.js
mathjax@2.7.5 jax/output/SVG/jax.js js/mathjax/2.7.5/jax/output/SVG/jax.js
mathjax@2.7.5 jax/output/SVG/config.js js/mathjax/2.7.5/jax/output/SVG/config.js
mathjax@2.7.5 jax/output/SVG/fonts/TeX/fontdata.js js/mathjax/2.7.5/jax/output/SVG/fonts/TeX/fontdata.js
mathjax@2.7.5 jax/output/SVG/fonts/TeX/Size1/Regular/Main.js js/mathjax/2.7.5/jax/output/SVG/fonts/TeX/Size1/Regular/Main.js
LIST

while read -r package source target; do
    if [ ! -d "$package" ]; then
        archive=$(npm pack --silent "$package")
        mkdir "$package"
        tar -xzf "$archive" -C "$package" --strip-components=1 2>/dev/null   # it warns of npm's own headers
    fi
    mkdir -p "$static/$(dirname "$target")"
    cp "$package/$source" "$static/$target"
done <files
printf %s "$version" >"$static/version.built"   # last: visdom takes it to mean that the files are complete
echo "install_dashboard_assets: visdom's browser files are in place"
