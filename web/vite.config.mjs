// Builds web/src into web/dist, which is committed and shipped: the same sources give the same bytes.
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { svelte } from '@sveltejs/vite-plugin-svelte';
import { defineConfig } from 'vite';

const root = dirname(fileURLToPath(import.meta.url));

export default defineConfig({
  root,
  base: './',
  publicDir: 'public',
  plugins: [
    svelte({
      configFile: false,
      // Names of scopes come from the styles themselves: paths and the working folder must not matter.
      compilerOptions: { runes: true, cssHash: ({ hash, css }) => `s-${hash(css)}` },
    }),
  ],
  build: {
    outDir: 'dist',
    emptyOutDir: true,
    target: 'es2022',
    // Nothing inline: a strict Content-Security-Policy allows the page's own files only.
    assetsInlineLimit: 0,
    modulePreload: false,
    cssCodeSplit: false,
    sourcemap: false,
    rolldownOptions: {
      output: {
        entryFileNames: 'app.js',
        chunkFileNames: '[name].js',
        assetFileNames: '[name][extname]',
      },
    },
  },
  // For `vite web`: the page from the sources, the API from a server that runs beside it.
  server: { proxy: { '/v1': 'http://127.0.0.1:8080', '/ansatz': 'http://127.0.0.1:8080' } },
});
